"""Commands — the command line behind `zarrow.cli`, one file per panel of ``zarrow --help``.

A command parses its arguments, calls the library and prints the answer; anything heavy is imported by the
command that needs it. This room may import everything but `cli`. First the panels, then what they share:

======================  ===============================================================================
`run`                   demo, predict
`look`                  info, head, watch
`keep`                  finalize, pack, verify, repair, index
`move`                  export, import
`analyse`               questions about vectors and probabilities
`compare`               one of these questions: two models or more
`draw`                  map, plot, report
`guides`                docs
`arguments`             the options that commands share, and what their texts mean
`watching`              how far a run is, and how fast
`show_store`            a store, in a terminal
`show_audit`            an audit or a repair, in a terminal
`show_answer`           an answer of the analysis, in a terminal
`interrupts`            what Ctrl-C does
`terminal`              consoles, tables, the progress bar, JSON
======================  ===============================================================================
"""
