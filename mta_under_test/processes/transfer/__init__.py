"""transfer: outbound sessions, and the map of where they go."""
