import sys; sys.path.insert(0,'/work/main')
import torch, tempfile, pathlib, multiprocessing as mp
import edgeda.checkpoint as c
def reader(d,b,q):
    b.wait()
    try: q.put(('ok',c.load_checkpoint(d)["n"]))
    except Exception as e: q.put((type(e).__name__,str(e)[-90:]))
if __name__=='__main__':
    bad=0
    for t in range(6):
        d=pathlib.Path(tempfile.mkdtemp(dir='/tmp/rev'))
        c.save_checkpoint(d,{"n":1,"t":torch.ones(2_000_000)}); c.save_checkpoint(d,{"n":2,"t":torch.ones(2_000_000)})
        p=d/c.FILE; b=bytearray(p.read_bytes()); b[-5]^=1; p.write_bytes(b)
        ctx=mp.get_context('fork'); bar=ctx.Barrier(2); q=ctx.Queue()
        ps=[ctx.Process(target=reader,args=(d,bar,q)) for _ in range(2)]
        [x.start() for x in ps]; print([q.get() for _ in ps]); [x.join() for x in ps]
