"""The commands: `recaption VERB` runs `jobs/VERB.py`, `recipes.py` holds all settings, `cluster.py` alone imports ray."""
