"use strict";
// The map, and the sorting of tables. All data come from the page itself; text is only ever set as text.
(() => {
  for (const table of document.querySelectorAll("table.sortable")) sortable(table);
  const holder = document.getElementById("map-data");
  if (holder) showMap(JSON.parse(holder.textContent));

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.textContent = "";
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") === "descending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const value = (row) => {
          const cell = row.cells[column];
          return cell.dataset.value === undefined ? cell.textContent : cell.dataset.value === "" ? null : Number(cell.dataset.value);
        };
        const rows = [...table.tBodies[0].rows].sort((one, two) => {
          const a = value(one), b = value(two);
          if (a === null || b === null) return (a === null) - (b === null); // unknown values come last
          const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
          return up ? order : -order;
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  function numbers(packed) {
    const bytes = Uint8Array.from(atob(packed.data), (one) => one.charCodeAt(0));
    return new { f4: Float32Array, i4: Int32Array, u4: Uint32Array, f8: Float64Array }[packed.type](bytes.buffer);
  }

  function showMap(data) {
    const xs = numbers(data.x), ys = numbers(data.y), rows = numbers(data.row), counts = numbers(data.count);
    const fields = data.fields.map((field) => ({ name: field.name, values: field.values, codes: numbers(field.codes) }));
    const colours = data.colours.map((colour) => ({ ...colour, values: numbers(colour.values) }));
    const canvas = document.getElementById("map"), context = canvas.getContext("2d");
    const choice = document.getElementById("colour"), legend = document.getElementById("legend");
    const detail = document.getElementById("detail"), said = document.getElementById("said");
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const cells = data.kind === "cells", total = xs.length;
    const ramp = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
    // On dark paper dark colours are mixed with a third of white.
    const pale = data.palette.map((hex) => "#" + [1, 3, 5].map((at) =>
      Math.round(parseInt(hex.slice(at, at + 2), 16) * 2 / 3 + 85).toString(16).padStart(2, "0")).join(""));
    const shade = (i) => (dark.matches ? pale : data.palette)[i], last = data.palette.length - 1;
    const most = counts.reduce((one, two) => Math.max(one, two), 1);
    let view = { zoom: 1, x: 0, y: 0 }, selected = -1, scale = 1, frame = 0;
    let low = [Infinity, Infinity], high = [-Infinity, -Infinity];
    for (let i = 0; i < total; i++) {
      low = [Math.min(low[0], xs[i]), Math.min(low[1], ys[i])];
      high = [Math.max(high[0], xs[i]), Math.max(high[1], ys[i])];
    }
    const middle = [(low[0] + high[0]) / 2, (low[1] + high[1]) / 2];
    const span = [Math.max(high[0] - low[0], data.side, 1e-9), Math.max(high[1] - low[1], data.side, 1e-9)];

    canvas.style.aspectRatio = String(Math.min(Math.max(span[0] / span[1], 1), 2.1)); // the map's own, within reason

    const px = (i) => canvas.width / 2 + (xs[i] - middle[0]) * scale + view.x;
    const py = (i) => canvas.height / 2 - (ys[i] - middle[1]) * scale + view.y;

    function rampColour(share) {
      const kept = Math.min(Math.max(share, 0), 1);  // rounding to float32 may have left the range
      const at = (dark.matches ? 0.22 + 0.78 * kept : kept) * (ramp.length - 1);
      const i = Math.min(Math.floor(at), ramp.length - 2), t = at - i;
      const part = (k) => Math.round(parseInt(ramp[i].slice(k, k + 2), 16) * (1 - t) + parseInt(ramp[i + 1].slice(k, k + 2), 16) * t);
      return `rgb(${part(1)} ${part(3)} ${part(5)})`;
    }

    function markColour(i) {
      const colour = colours[choice.value];
      if (!colour) {
        if (!cells) return shade(0);
        const share = Math.log(counts[i]) / Math.max(Math.log(most), 1e-9);
        return rampColour(dark.matches ? share : 1 - share);
      }
      const value = colour.values[i];
      if (Number.isNaN(value)) return dark.matches ? "#5b6068" : "#c4c7cc";
      if (colour.labels) return shade(value >= colour.named ? last : value);
      return rampColour(colour.high > colour.low ? (value - colour.low) / (colour.high - colour.low) : 0.5);
    }

    function draw() {
      frame = 0;
      const ratio = window.devicePixelRatio || 1;
      const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
      if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
      const room = 18 * ratio;
      scale = Math.min((width - 2 * room) / span[0], (height - 2 * room) / span[1]) * view.zoom;
      context.clearRect(0, 0, width, height);
      const side = Math.max(data.side * scale, ratio);
      const radius = Math.max(Math.min(40 / Math.sqrt(total), 6), 1.6) * ratio * Math.sqrt(view.zoom);
      context.globalAlpha = cells ? 1 : 0.8;
      for (let i = 0; i < total; i++) {
        const x = px(i), y = py(i);
        if (x < -side || y < -side || x > width + side || y > height + side) continue;
        context.fillStyle = markColour(i);
        if (cells) {
          context.globalAlpha = 0.4 + 0.6 * Math.log1p(counts[i]) / Math.log1p(most); // more rows, more opaque
          const left = Math.round(x - side / 2), top = Math.round(y - side / 2); // whole pixels: no seams
          context.fillRect(left, top, Math.round(x + side / 2) - left, Math.round(y + side / 2) - top);
        } else {
          context.beginPath();
          context.arc(x, y, radius, 0, 7);
          context.fill();
        }
      }
      context.globalAlpha = 1;
      if (selected >= 0) {
        const ring = Math.max(cells ? side : radius * 1.6, 7 * ratio);
        for (const [line, colour] of [[5, dark.matches ? "#15171a" : "#ffffff"], [2.5, dark.matches ? "#ffffff" : "#000000"]]) {
          context.lineWidth = line * ratio;
          context.strokeStyle = colour;
          context.beginPath();
          context.arc(px(selected), py(selected), ring, 0, 7);
          context.stroke();
        }
      }
    }

    const redraw = () => { frame = frame || requestAnimationFrame(draw); };

    function showLegend() {
      legend.replaceChildren();
      const colour = colours[choice.value];
      const element = (name, parent, text) => {
        const made = document.createElement(name);
        if (text !== undefined) made.textContent = text;
        parent.append(made);
        return made;
      };
      if (colour && colour.labels) {
        const list = element("ul", legend);
        colour.labels.forEach((label, i) => {
          const item = element("li", list);
          const swatch = element("span", item);
          swatch.className = "swatch";
          swatch.style.background = shade(i >= colour.named ? last : i);
          element("span", item, label);
        });
      } else if (colour || cells) {
        const bar = element("div", legend);
        bar.className = "ramp";
        const stops = [0, 0.25, 0.5, 0.75, 1].map((share) => rampColour(colour || dark.matches ? share : 1 - share));
        bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
        const ends = element("div", legend);
        ends.className = "ends";
        element("span", ends, colour ? format(colour.low) : "1 row");
        element("span", ends, colour ? format(colour.high) : `${most.toLocaleString("en")} rows`);
      }
    }

    const format = (value) => Number.isInteger(value) ? value.toLocaleString("en") : Number(value.toPrecision(4)).toString();

    function facts(i) {
      const shown = [];
      if (cells) shown.push([counts[i] === 1 ? "row here" : "rows here", counts[i].toLocaleString("en")]);
      for (const colour of colours) {
        const value = colour.values[i];
        if (cells && !Number.isNaN(value)) {
          shown.push([colour.labels ? `${colour.name}, most often` : `${colour.name}, mean`, colour.labels ? colour.labels[value] : format(value)]);
        }
      }
      shown.push([cells && counts[i] > 1 ? "an example: row" : "row", String(rows[i])]);
      for (const field of fields) shown.push([field.name, field.values[field.codes[i]]]);
      return shown;
    }

    function select(i, aloud) {
      if (i === selected && !aloud) return;
      selected = i;
      detail.replaceChildren();
      if (i >= 0) {
        const list = document.createElement("dl");
        for (const [name, value] of facts(i)) {
          const term = document.createElement("dt"), what = document.createElement("dd");
          term.textContent = name;
          what.textContent = value;
          list.append(term, what);
        }
        detail.append(list);
        if (aloud) said.textContent = facts(i).map(([name, value]) => `${name}: ${value}`).join("; ");
      } else {
        detail.textContent = data.hint;
      }
      redraw();
    }

    function nearest(x, y, within) {
      let best = -1, least = within * within;
      for (let i = 0; i < total; i++) {
        const dx = px(i) - x, dy = py(i) - y, distance = dx * dx + dy * dy;
        if (distance < least) [best, least] = [i, distance];
      }
      return best;
    }

    function step(right, down) {
      if (selected < 0) return select(nearest(canvas.width / 2, canvas.height / 2, Infinity), true);
      let best = -1, least = Infinity;
      const x = px(selected), y = py(selected);
      for (let i = 0; i < total; i++) {
        const dx = px(i) - x, dy = py(i) - y;
        const along = dx * right + dy * down, across = Math.abs(dx * down) + Math.abs(dy * right);
        if (along <= 1e-6 || across > along) continue;
        const distance = along + 2 * across;
        if (distance < least) [best, least] = [i, distance];
      }
      if (best >= 0) {
        select(best, true);
        keepInSight();
      } else {
        said.textContent = "no row further in this direction";
      }
    }

    function keepInSight() {
      const x = px(selected), y = py(selected);
      if (x < 0 || x > canvas.width) view.x += canvas.width / 2 - x;
      if (y < 0 || y > canvas.height) view.y += canvas.height / 2 - y;
      redraw();
    }

    function zoom(factor, x = canvas.width / 2, y = canvas.height / 2) {
      const before = view.zoom;
      view.zoom = Math.min(Math.max(before * factor, 1), 64);
      const change = view.zoom / before;
      view.x = (view.x + canvas.width / 2 - x) * change + x - canvas.width / 2;
      view.y = (view.y + canvas.height / 2 - y) * change + y - canvas.height / 2;
      if (view.zoom === 1) view.x = view.y = 0;
      canvas.style.touchAction = view.zoom > 1 ? "none" : "pan-y";
      redraw();
    }

    function reset() {
      view = { zoom: 1, x: 0, y: 0 };
      canvas.style.touchAction = "pan-y";
      redraw();
    }

    const keys = {
      ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0), ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: reset, Escape: () => { select(-1); said.textContent = ""; },
    };
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });

    const place = (event) => {
      const box = canvas.getBoundingClientRect(), ratio = canvas.width / box.width;
      return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio, ratio];
    };
    let held = null;
    canvas.addEventListener("pointerdown", (event) => {
      held = { x: event.clientX, y: event.clientY, moved: false };
      const [x, y, ratio] = place(event);
      select(nearest(x, y, 24 * ratio), true);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (held && event.buttons && view.zoom > 1) {
        const ratio = canvas.width / canvas.clientWidth;
        view.x += (event.clientX - held.x) * ratio;
        view.y += (event.clientY - held.y) * ratio;
        held = { x: event.clientX, y: event.clientY };
        redraw();
      } else if (event.pointerType === "mouse") {
        const [x, y, ratio] = place(event);
        const found = nearest(x, y, 14 * ratio);
        if (found >= 0) select(found, false);
      }
    });
    addEventListener("pointerup", () => { held = null; });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // without a modifier the page scrolls
      event.preventDefault();
      const [x, y] = place(event);
      zoom(Math.exp(-event.deltaY / 300), x, y);
    }, { passive: false });
    document.getElementById("in").addEventListener("click", () => zoom(1.5));
    document.getElementById("out").addEventListener("click", () => zoom(1 / 1.5));
    document.getElementById("reset").addEventListener("click", reset);
    choice.addEventListener("change", () => { showLegend(); redraw(); });
    dark.addEventListener("change", () => { showLegend(); redraw(); });
    new ResizeObserver(redraw).observe(canvas);
    canvas.style.touchAction = "pan-y";
    detail.textContent = data.hint;
    showLegend();
    redraw();
  }
})();
