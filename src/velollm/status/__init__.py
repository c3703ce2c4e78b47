"""What VeloLLM has set here, what really runs, where they differ; and what the server does at this moment."""
