/* The style and the script of a report. Light and dark follow the reader's system; the accent runs
 * through the colours that steel takes when it is tempered, from straw to blue. Without the script
 * the page is complete; the script only adds values under the pointer. */
#include "report/page.h"

#include "report/chart.h"

static const char STYLE[] =
    ":root{color-scheme:light dark;--bg:#f6f5f2;--card:#fff;--ink:#1d2127;--soft:#5c6570;--pale:#8b939c;--rule:#e4e2dc;"
    "--c1:#2a5c9e;--c2:#b5651d;--c3:#7a3e86;--c4:#23806b;--c5:#a83a4c;--c6:#6b7280;--t0:#dda41c;--t1:#8c3f72;--t2:#2a5c9e;"
    "--good:#1d7a4f;--good-bg:#e3f3ea;--bad:#b42a33;--bad-bg:#fbe6e7;--warn:#8a6100;--warn-bg:#fbf1d7}\n"
    "@media(prefers-color-scheme:dark){:root{--bg:#101317;--card:#181c22;--ink:#e6e8eb;--soft:#a3abb5;--pale:#757e89;"
    "--rule:#2a3038;--c1:#6ea8ee;--c2:#e79a52;--c3:#c58ad2;--c4:#5cc2a6;--c5:#ee7e8d;--c6:#9aa3ae;--t0:#f0cb62;--t1:#c470a4;--t2:#6ea8ee;"
    "--good:#62cf98;--good-bg:#173326;--bad:#ff8a8f;--bad-bg:#3d1c20;--warn:#e9c46a;--warn-bg:#352c15}}\n"
    "*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"
    "\"Segoe UI\",Roboto,\"Noto Sans\",\"Liberation Sans\",sans-serif;-webkit-font-smoothing:antialiased}\n"
    ".stripe{height:5px;background:linear-gradient(90deg,#e3bd5b,#c98a3c,#9c5a4a,#7a3e78,#4a4f94,#2a6fa8)}\n"
    "main{max-width:1080px;margin:0 auto;padding:32px 24px 56px}"
    "h1{font-size:28px;line-height:1.2;letter-spacing:-.015em;margin:0;overflow-wrap:anywhere}"
    "h2{font-size:17px;letter-spacing:-.005em;margin:0 0 2px}h2+p{margin:0 0 12px}"
    "p{margin:0}.soft{color:var(--soft)}.small{font-size:13px}"
    ".head{display:flex;flex-wrap:wrap;gap:6px 14px;align-items:center}.brand{color:var(--pale);font-weight:600;font-size:13px;"
    "letter-spacing:.08em;text-transform:uppercase;margin-bottom:6px}\n"
    ".pill{display:inline-block;border-radius:99px;padding:2px 11px;font-size:13px;font-weight:600;white-space:nowrap;"
    "background:var(--rule);color:var(--soft)}.pill.good{background:var(--good-bg);color:var(--good)}"
    ".pill.bad{background:var(--bad-bg);color:var(--bad)}.pill.warn{background:var(--warn-bg);color:var(--warn)}\n"
    ".verdict{font-size:19px;line-height:1.4;margin:22px 0 16px;max-width:46em;letter-spacing:-.005em}"
    ".cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(290px,1fr));gap:16px}"
    ".card{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:18px 20px;margin:0 0 16px;min-width:0}"
    ".cards .card{margin:0}.cards{margin-bottom:16px}.two{display:grid;grid-template-columns:1fr 1fr;gap:16px}.two .card{margin-bottom:16px}"
    "@media(max-width:760px){.two{grid-template-columns:1fr;gap:0}main{padding:22px 14px}}\n"
    ".what{display:flex;justify-content:space-between;gap:8px;font-size:13px;font-weight:600;color:var(--soft)}"
    ".figure{font-size:32px;line-height:1.25;font-weight:650;letter-spacing:-.02em;font-variant-numeric:tabular-nums;margin:4px 0 2px}"
    ".figure .was{color:var(--pale);font-weight:500}.figure .to{color:var(--pale);font-weight:400;font-size:24px;margin:0 6px}"
    ".bar{height:8px;border-radius:4px;background:var(--rule);margin:10px 0 5px;overflow:hidden}"
    ".bar i{display:block;height:100%;border-radius:4px;background:var(--good)}.bar.bad i{background:var(--bad)}.bar.plain i{background:var(--c1)}\n"
    ".notes{border-color:var(--warn);background:var(--warn-bg);color:var(--warn)}.notes ul{margin:4px 0 0;padding-left:20px}"
    ".legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;color:var(--soft);margin:0 0 6px}"
    ".legend span{display:inline-flex;align-items:center;gap:7px}.legend i{width:16px;height:3px;border-radius:2px;background:currentColor}\n"
    "svg.chart{display:block;width:100%;height:auto;overflow:visible}svg text{font-size:12px;fill:var(--soft);font-variant-numeric:tabular-nums}"
    "svg .mid{text-anchor:middle}svg .end{text-anchor:end}svg .label{fill:var(--pale)}.grid{stroke:var(--rule)}"
    ".axis,.tickmark{stroke:var(--pale);stroke-opacity:.6}.line,.faint{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}"
    ".faint{stroke-width:1;stroke-opacity:.32}.dot{stroke:var(--card);stroke-width:1.5}"
    ".limit{stroke:var(--bad);stroke-dasharray:5 4;stroke-opacity:.8}svg .limit-label{fill:var(--bad)}.beyond{fill:var(--bad);fill-opacity:.07}"
    "@media(max-width:760px){.wide{overflow:auto hidden}.wide>svg,.wide>svg.chart{width:760px}}"
    ".nothing{color:var(--pale);padding:30px 0;text-align:center}.path{stroke:var(--pale);stroke-opacity:.7;stroke-width:1.5}\n"
    ".c1{stroke:var(--c1);color:var(--c1)}.c2{stroke:var(--c2);color:var(--c2)}.c3{stroke:var(--c3);color:var(--c3)}"
    ".c4{stroke:var(--c4);color:var(--c4)}.c5{stroke:var(--c5);color:var(--c5)}.c6{stroke:var(--c6);color:var(--c6)}"
    "circle.c1{fill:var(--c1)}circle.c2{fill:var(--c2)}circle.c3{fill:var(--c3)}circle.c4{fill:var(--c4)}circle.c5{fill:var(--c5)}"
    "circle.c6{fill:var(--c6)}circle.dot{stroke:var(--card)}\n"
    "table{width:100%;border-collapse:collapse;font-size:13.5px}td,th{text-align:left;padding:5px 14px 5px 0;border-top:1px solid var(--rule);"
    "vertical-align:top}tr:first-child>*{border-top:0}th{font-weight:500;width:250px}td.help{color:var(--pale)}.part>*{border:0;padding-top:0;padding-bottom:2px;color:var(--soft);font-size:12.5px}.part>th{padding-left:14px}"
    "code,.mono{font:12.5px/1.5 ui-monospace,\"SF Mono\",Menlo,Consolas,\"DejaVu Sans Mono\",\"Liberation Mono\",monospace;overflow-wrap:anywhere}"
    "td.mono{min-width:7em}@media(max-width:760px){td.help{display:none}th{width:45%}}"
    "details>summary{cursor:pointer;font-size:17px;font-weight:700;list-style:none}summary::-webkit-details-marker{display:none}"
    "summary::after{content:\"+\";float:right;color:var(--pale);font-weight:400;font-size:20px;line-height:1}details[open]>summary::after{content:\"–\"}"
    "details>p{margin:2px 0 10px}"
    "footer{color:var(--pale);font-size:13px;margin-top:26px}\n"
    "#tip{position:absolute;pointer-events:none;background:var(--ink);color:var(--bg);border-radius:8px;padding:7px 11px;font-size:12.5px;"
    "line-height:1.5;opacity:0;transition:opacity .08s;white-space:nowrap;font-variant-numeric:tabular-nums;z-index:9;left:0;top:0}"
    "#tip b{font-weight:600}.cross{stroke:var(--pale);stroke-opacity:.7;pointer-events:none}"
    "@media print{body{background:#fff}.card{break-inside:avoid}#tip{display:none}}\n";

/* The point nearest to the pointer: by x on curves over steps (of every series), by distance on paths. */
static const char SCRIPT[] =
    "(function(){var tip=document.getElementById('tip');\n"
    "function number(v,p){if(p)return (v*100).toPrecision(3)+' %';var a=Math.abs(v);return a&&(a<1e-3||a>=1e6)?v.toExponential(2):String(+v.toPrecision(5))}\n"
    "document.querySelectorAll('svg.chart').forEach(function(svg){\n"
    "var box=svg.dataset.box.split(',').map(Number),steps=svg.dataset.kind=='steps',percent=svg.dataset.percent=='1';\n"
    "var series=[].map.call(svg.querySelectorAll('.series'),function(g){return{name:g.dataset.name,points:g.dataset.p.split(';').filter(Boolean).map(function(t){"
    "var f=t.split(',').map(Number);return{px:f[0],py:f[1],x:f[2],y:f[3]}}),titles:[].map.call(g.querySelectorAll('title'),function(t){"
    "var s=t.textContent;t.remove();return s})}}).filter(function(s){return s.name&&s.points.length});\n"
    "var line=document.createElementNS(svg.namespaceURI,'line');line.setAttribute('class','cross');line.setAttribute('y1',box[1]);line.setAttribute('y2',box[3]);\n"
    "svg.appendChild(line);line.style.display='none';\n"
    "svg.addEventListener('pointermove',function(e){var r=svg.getBoundingClientRect(),k=svg.viewBox.baseVal.width/r.width,x=(e.clientX-r.left)*k,y=(e.clientY-r.top)*k,best=null,near=1e9;\n"
    "series.forEach(function(s){s.points.forEach(function(p,i){var d=steps?Math.abs(p.px-x):Math.hypot(p.px-x,p.py-y);if(d<near){near=d;best={s:s,p:p,i:i}}})});\n"
    "if(!best||x<box[0]-8||x>box[2]+8){leave();return}\n"
    "tip.textContent='';function row(t,b){var d=document.createElement('div');if(b){var n=document.createElement('b');n.textContent=b;d.appendChild(document.createTextNode(t+' '));d.appendChild(n)}else d.textContent=t;tip.appendChild(d)}\n"
    "if(steps){row('step '+best.p.x);series.forEach(function(s){var q=null,m=1e9;s.points.forEach(function(p){var d=Math.abs(p.px-best.p.px);if(d<m){m=d;q=p}});"
    "if(q&&m<14)row(s.name+(q.x!=best.p.x?' (step '+q.x+')':''),number(q.y,percent))});line.style.display='';line.setAttribute('x1',best.p.px);line.setAttribute('x2',best.p.px)}\n"
    "else row(best.s.titles[best.i]||best.s.name);\n"
    "tip.style.opacity=1;var w=tip.offsetWidth,left=r.left+best.p.px/k+14;if(left+w>innerWidth-8)left-=w+28;\n"
    "tip.style.transform='translate('+(left+scrollX)+'px,'+((steps?e.clientY:r.top+best.p.py/k)+scrollY-tip.offsetHeight-10)+'px)'});\n"
    "function leave(){tip.style.opacity=0;line.style.display='none'}svg.addEventListener('pointerleave',leave)})})();\n";

void page_open(tm_buf *out, const char *title)
{
    tm_buf_text(out, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
                     "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n<title>");
    html_text(out, title);
    tm_buf_text(out, "</title>\n<style>\n");
    tm_buf_text(out, STYLE);
    tm_buf_text(out, "</style></head>\n<body><div class=\"stripe\"></div><main>\n");
}

void page_close(tm_buf *out, const char *version)
{
    tm_buf_text(out, "<footer>temper ");
    html_text(out, version);
    tm_buf_text(out, " · this page holds everything it shows and asks nothing of the network</footer>\n"
                     "</main><div id=\"tip\"></div>\n<script>\n");
    tm_buf_text(out, SCRIPT);
    tm_buf_text(out, "</script></body></html>\n");
}
