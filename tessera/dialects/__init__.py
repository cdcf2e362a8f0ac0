"""What pods ask for, in whichever system's words: one file per dialect, one table of them, one meaning for all.

Pure: a pod in, a request out. What is done to the pod with it (tickets, patches) is admission's business.
"""
