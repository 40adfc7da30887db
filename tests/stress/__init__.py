"""Runs tests again and again on a machine that is kept busy; see `__main__`."""
