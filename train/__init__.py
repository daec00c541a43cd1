"""Packs to model: one training loop, its tasks, compressors, backbones and the sampler.

trainer.py runs every task (captioner, compressor, dit); checkpoint.py is what a run leaves behind; compressors/ turns
pixels into latents and back; dit_task.py and sampler.py train and sample the diffusion transformer.
"""
