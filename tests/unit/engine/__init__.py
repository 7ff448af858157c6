"""The engine as it is, in one process, around a store of pure Python: searched for holes, and pinned by what was found."""
