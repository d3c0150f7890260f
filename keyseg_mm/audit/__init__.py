"""The audit: what does somebody without the key really get out of a protected checkpoint?

Two arenas, ``model/`` (what is the file worth) and ``images/`` (what do encrypted pictures still show), share
``engine/`` and ``report/``. An attacker holds a case: all that is public, and what the scenario grants besides. Attacks
are registered classes. The referee alone holds the true key; it scores attacks and controls by the same path. The
headline is *attack advantage*: best attack less best control at the same data.
"""
