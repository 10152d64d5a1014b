"""The generation engine: W responses of a prompt in lockstep, the prompt computed and stored
once."""
