"""A simulation of one channel: model servers, model workers and model clients around the real `app.core.continuity`.

`oracle` judges and never uses the code under test, `store` is Redis with everything that may befall it, `world` drives
the real state machines as the hub does, `rules` takes single rules away, `search` finds and shrinks traces.
"""
