"""An OpenAI-compatible server whose n choices of a prompt are one group."""
