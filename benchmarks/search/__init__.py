"""Cost of counting and proposals, and how good the proposals are."""
