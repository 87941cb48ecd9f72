"""Results that appear whole: formats, a spool and a journal that a stopped run continues, what Ctrl-C may interrupt."""
