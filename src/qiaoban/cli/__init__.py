"""The command line: thin modules, one per group. The only place that prints, and that formats errors for a person."""
