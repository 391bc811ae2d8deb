"""The report: one HTML page that shows and compares trained networks. Nothing in it runs."""
