"""Says what the Python SDK makes of the definitions in cases.json.

python describe.py CASES-FILE, in the directory of the files.
"""

import json
import os
import sys

from daytona import Image
from daytona._sync.object_storage import ObjectStorage

storage = ObjectStorage.__new__(ObjectStorage)  # only its arithmetic is used


def here(s):
    return s.replace("$DIR", os.getcwd())


def options(o, one=False):
    kw = {}
    for theirs, ours in [("findLinks", "find_links"), ("indexUrl", "index_url"), ("pre", "pre"), ("extraOptions", "extra_options")]:
        if theirs in o:
            kw[ours] = o[theirs]
    if "extraIndexUrls" in o:
        kw["extra_index_url" if one else "extra_index_urls"] = o["extraIndexUrls"]
    return kw


STEPS = {
    "base": lambda _, ref: Image.base(ref),
    "debianSlim": lambda _, v: Image.debian_slim(v or None),
    "fromDockerfile": lambda _, p: Image.from_dockerfile(p),
    "pipInstall": lambda i, pkgs, o: i.pip_install(pkgs, **options(o)),
    "requirements": lambda i, f, o: i.pip_install_from_requirements(f, **options(o)),
    "pyproject": lambda i, f, o, groups: i.pip_install_from_pyproject(f, groups, **options(o, True)),
    "addLocalFile": lambda i, a, b: i.add_local_file(here(a), b),
    "addLocalDir": lambda i, a, b: i.add_local_dir(here(a), b),
    "run": lambda i, *c: i.run_commands(*c),
    "runWords": lambda i, *w: i.run_commands(list(w)),
    "env": lambda i, e: i.env(e),
    "workdir": lambda i, d: i.workdir(d),
    "entrypoint": lambda i, *w: i.entrypoint(list(w)),
    "cmd": lambda i, *w: i.cmd(list(w)),
    "commands": lambda i, lines, d: i.dockerfile_commands(lines, here(d) or None),
}

out = {}
with open(sys.argv[1], encoding="utf-8") as f:
    cases = json.load(f)["cases"]
for c in cases:
    try:
        image = None
        for name, *args in c["ops"]:
            image = STEPS[name](image, *args)
        contexts = [
            {"archivePath": x.archive_path, "hash": storage._compute_hash_for_path_md5(x.source_path, x.archive_path)}
            for x in image._context_list
        ]
        out[c["name"]] = {"dockerfile": image.dockerfile(), "contexts": contexts}
    except Exception as e:
        out[c["name"]] = {"error": str(e).replace(os.getcwd(), "$DIR")}
print(json.dumps(out))
