"""The commands: each parses its flags and calls the stage of the same name."""
