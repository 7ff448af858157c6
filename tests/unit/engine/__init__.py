"""The engine as it is, in one process, around a store of pure Python: searched, and pinned by what was found."""
