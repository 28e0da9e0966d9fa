"""The subcommands of `transformers-ait`, a module each with a `main(arguments)` that returns the exit status."""
