"""Tests, named by behaviour; each folder answers for one kind of proof."""
