"""The commands. `recaption VERB` runs `jobs/VERB.py`; `recipes.py` holds every setting; only `cluster.py` imports ray."""
