"""The command line: the only package that parses flags, prints, or exits."""
