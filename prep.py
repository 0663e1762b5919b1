import re,sys
src=open(sys.argv[1]).read()
src=re.sub(r'extern __shared__ __align__\(16\) unsigned char memory\[\];','unsigned char *memory = emu_dynamic;',src)
src=re.sub(r'extern __shared__ __align__\(16\) float factor\[\];','float *factor = (float *)emu_dynamic;',src)
def repl(m):
    k=m.group(1); cfg=m.group(2)
    # split cfg top-level commas
    parts=[];d=0;cur=''
    for ch in cfg:
        if ch in '([{<' : d+=1
        if ch in ')]}>': d-=1
        if ch==',' and d==0: parts.append(cur);cur=''
        else: cur+=ch
    parts.append(cur)
    return 'emu_launch(dim3(%s), dim3(%s), [&] { %s(' %(parts[0].strip(),parts[1].strip(),k)
out='';i=0
pat=re.compile(r'((?:\w+)(?:<[^;{}]*?>)?)<<<(.*?)>>>\(')
while True:
    m=pat.search(src,i)
    if not m: out+=src[i:];break
    out+=src[i:m.start()]+repl(m)
    j=m.end();d=1
    while d:
        if src[j]=='(':d+=1
        if src[j]==')':d-=1
        j+=1
    out+=src[m.end():j]+'; })'
    i=j
out=re.sub(r'asm\("ex2[^;]*;[^;]*\);','y = exp2f(x);',out); out=re.sub(r'asm\("rcp[^;]*;[^;]*\);','y = 1 / x;',out)
out=out.replace('asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));','y = exp2f(x);').replace('asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));','y = 1 / x;')
out=out.replace('struct tm_cuda_error','')
open(sys.argv[2],'w').write(out)
