"""Training pairs rendered from label maps while a network trains.

After Hoffmann et al., "SynthMorph: learning contrast-invariant registration without acquired images", IEEE TMI 2022.
"""
