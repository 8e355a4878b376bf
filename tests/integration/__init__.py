"""Small real programs of other projects' libraries, run on the loop."""
