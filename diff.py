import sys; sys.path.insert(0,'/work/main')
import tempfile
from pathlib import Path
from edgeda.recipe_file import load_recipe
from edgeda.cells import differences
d=Path(tempfile.mkdtemp(dir='/tmp/rev'))
r=load_recipe("digits",{})
(d/"recipe.yaml").write_text(r.to_yaml())
print(differences(d,load_recipe("digits",{"data.cache_gb":5,"train.prefetch":1,"train.track":["tensorboard"],"train.devices":2})))
# a resolved null
import signal,os
from edgeda.stopping import stopping
signal.signal(signal.SIGINT,signal.SIG_IGN)
asked=[]
with stopping(asked.append): os.kill(os.getpid(),signal.SIGINT)
print('ignored SIGINT, stopping was asked by', asked)
