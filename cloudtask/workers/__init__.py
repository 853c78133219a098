"""Everything that looks after one worker: the supervisor process, what it speaks with the main process and with the agent."""
