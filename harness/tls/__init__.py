"""How strong a server's ephemeral keys really are: read from handshakes, not from what it says it prefers."""
