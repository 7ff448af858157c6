"""The engine as it is, in one process, around a store of pure Python: searched for holes, pinned by what was found."""
