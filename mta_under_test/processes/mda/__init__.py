"""A local delivery, as delivery asks for it and parent runs it: the job, the agents, and what became of it."""
