"""Searching architectures: what can be chosen, what has been tried, who proposes next, and how a proposal is judged."""
