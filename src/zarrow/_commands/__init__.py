"""Commands — the command line behind `zarrow.cli`, one file per panel of ``zarrow --help``.

A command parses its arguments, calls the library and prints; what is heavy is imported by the command that
needs it. May import everything but `cli`.

======================  ===============================================================================
`answers`               arguments in, answers out
`console`               the two consoles that commands print to
`move`                  export, import, index, watch
`analyse`               questions about vectors and probabilities
`draw`                  map, plot, report
`show_store`            a store, in a terminal
`show_audit`            an audit or a repair, in a terminal
`watching`              how far a run is, and how fast
======================  ===============================================================================
"""
