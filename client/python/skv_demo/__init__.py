"""The demo: three engine processes, one skvd, three tiers. `python -m skv_demo --help`."""
