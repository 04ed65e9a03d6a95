"""Write the finished evaluations of an experiment as one page, leaderboard.html and leaderboard.md.

python leaderboard.py tracking.experiment=NAME
"""

from rmexp.cli.leaderboard import run

if __name__ == "__main__":
    run()
