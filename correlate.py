"""Correlate reward models' scores with policies, with each other, or two runs in detail.

python correlate.py scores=rewardbench2_ppo_bon policy=rewardbench2_ppo_bon
"""

from rmexp.cli.correlate import run

if __name__ == "__main__":
    run()
