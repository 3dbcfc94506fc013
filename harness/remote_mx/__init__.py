"""The remote mail server that refuses as told: what our target relays to, and where its bounces go."""
