"""What is wrong with an installation, told from the cluster's own objects: objects in, findings out.

Pure, like `tessera.report`: who reads the objects (`tessera.cli.looking`) says for each kind of them what was read or why it
could not be, and a check that has nothing to look at says so instead of saying that all is well.
"""
