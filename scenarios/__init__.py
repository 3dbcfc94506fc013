"""One short file a scenario; each declares ``SCENARIO`` and is also a plain locustfile."""
