"""Numbers as something to read: tables, comparisons, sentences derived from what was measured."""
