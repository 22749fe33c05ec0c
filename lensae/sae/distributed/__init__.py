"""Several processes that train one SAE: what each holds, and how they write one file."""
