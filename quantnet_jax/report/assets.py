"""Style sheet and script of the report, both inlined into its page."""

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#16181d;--dim:#667085;
--line:#e3e6eb;--accent:#4f5bd5;--c0:#4f5bd5;--c1:#d9480f;--c2:#0b8f6a;--c3:#b0309a;
--c4:#a67c00;--c5:#0a84b5;--c6:#c92a4b;--c7:#5f6b7a}
@media(prefers-color-scheme:dark){:root{--bg:#101216;--card:#191c22;--ink:#e8eaee;
--dim:#98a1b0;--line:#2b303a;--accent:#8f99ff;--c0:#8f99ff;--c1:#ff8a4c;--c2:#38c79b;
--c3:#e27bd0;--c4:#d9b13b;--c5:#4cc0ee;--c6:#ff7088;--c7:#a7b0be}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1240px;padding:28px 18px 60px;background:var(--bg);
color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:25px;margin:0 0 8px;overflow-wrap:anywhere;letter-spacing:-.01em}
h2{font-size:17px;margin:34px 0 12px}
h3{font-size:14px;margin:0 0 6px;font-weight:600}
.dim,small{color:var(--dim)}small{font-size:12.5px}
.chips{display:flex;flex-wrap:wrap;gap:6px}
.chips span{background:var(--card);border:1px solid var(--line);border-radius:99px;
padding:2px 11px;font-size:13px;overflow-wrap:anywhere}.chips i{font-style:normal;
color:var(--dim);margin-right:5px}
.grid{display:grid;gap:14px;
grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr))}
.cards{display:grid;gap:12px;margin-top:20px;
grid-template-columns:repeat(auto-fit,minmax(118px,1fr))}
.maps{display:grid;gap:14px;
grid-template-columns:repeat(auto-fill,minmax(min(100%,270px),1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;
padding:14px 16px;min-width:0}
.card b{display:block;white-space:nowrap;font-size:24px;line-height:1.25;
font-variant-numeric:tabular-nums;
letter-spacing:-.02em}.card b em{font:500 15px system-ui;color:var(--dim)}
.key{border-color:var(--accent)}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;margin:0 0 10px;font-size:13px}
.legend button{all:unset;cursor:pointer;display:flex;gap:6px;align-items:center;
overflow-wrap:anywhere}
.legend button:focus-visible{outline:2px solid var(--accent)}
.legend button[aria-pressed=false]{opacity:.35}
.legend svg{flex:none;width:24px;height:8px}
.chart{display:block;width:100%;height:auto;touch-action:pan-y;
overflow:visible}
.chart text{fill:var(--dim);font:12px system-ui,sans-serif}
@media(max-width:600px){.chart text{font-size:18px}}
.chart .g{stroke:var(--line)}.chart .z{stroke:var(--dim);stroke-dasharray:2 3}
.chart .s{fill:none;stroke-width:2;vector-effect:non-scaling-stroke;
stroke-linejoin:round;stroke-linecap:round}
.chart .cur{stroke:var(--dim);visibility:hidden}
.wide{overflow-x:auto;padding:4px 0}
table{border-collapse:collapse;width:100%;font-size:13.5px;
font-variant-numeric:tabular-nums}
th,td{padding:6px 12px;text-align:right;white-space:nowrap;
border-top:1px solid var(--line)}
thead th{border:0;color:var(--dim);font-weight:500;font-size:12.5px}
th:first-child,td:first-child{text-align:left}
tbody tr:hover{background:var(--bg)}
.bar{display:inline-block;width:90px;height:8px;margin-left:9px;border-radius:4px;
background:var(--line);overflow:hidden}
.bar span{display:block;height:100%;border-radius:4px;background:var(--accent)}
.map{position:relative;height:132px;background:var(--bg);border-radius:6px;
overflow:hidden;touch-action:pan-y}
.map img{position:absolute;inset:0;width:100%;height:100%;image-rendering:pixelated}
.axis{display:flex;justify-content:space-between}
details{margin-top:12px}summary{cursor:pointer;font-weight:600;overflow-wrap:anywhere}
details[open]>summary{margin-bottom:10px}
pre{overflow:auto;font-size:12.5px;margin:0}
abbr{text-decoration:underline dotted var(--line);text-underline-offset:3px}
.space{height:16px}.pair{display:flex;gap:12px}figure{margin:0;min-width:0}
.pair figure{flex:1}.pair img{width:100%;height:120px;image-rendering:pixelated;
background:var(--bg);border-radius:6px}
figcaption{color:var(--dim);font-size:12.5px;overflow-wrap:anywhere}
.samples{display:grid;gap:12px;align-content:start;
grid-template-columns:repeat(auto-fill,minmax(76px,1fr))}
.samples img{width:100%;aspect-ratio:1;object-fit:contain;image-rendering:pixelated;
background:var(--bg);border-radius:6px;border:2px solid var(--c2)}
.samples .bad img{border-color:var(--c6)}
.samples b{display:block;font-size:12.5px;white-space:normal;color:var(--ink);
line-height:1.3;
letter-spacing:0}
.counts{font-size:12px}.counts th,.counts td{padding:4px 6px;border:0}
.counts thead th{writing-mode:vertical-rl;transform:rotate(180deg);text-align:left}
.matrix{width:100%;max-width:420px;image-rendering:pixelated;background:var(--bg)}
dl.card{margin:0;display:grid;grid-template-columns:max-content 1fr;gap:4px 18px}
dd{margin:0;color:var(--dim)}
@media(max-width:600px){dl.card{grid-template-columns:1fr}dd{margin-bottom:6px}
body{padding:18px 12px 40px}.card:has(>.chart){padding:10px}}
.wide th:first-child,.wide td:first-child{position:sticky;left:0;
background:var(--card);z-index:1}
#tip{position:fixed;pointer-events:none;z-index:9;background:var(--ink);color:var(--bg);
border-radius:8px;padding:7px 11px;font-size:12.5px;line-height:1.45;max-width:280px;
font-variant-numeric:tabular-nums;visibility:hidden;white-space:pre}
#tip svg{display:block;width:192px;height:44px;margin-top:5px;fill:currentColor}
"""

SCRIPT = """
const tip = document.getElementById('tip');
const show = (event, text, bars) => {
  tip.textContent = text;
  if (bars) {
    const ns = 'http://www.w3.org/2000/svg', svg = document.createElementNS(ns, 'svg');
    const top = Math.max(...bars, 1e-9), path = document.createElementNS(ns, 'path');
    svg.setAttribute('viewBox', '0 0 ' + bars.length + ' 1');
    svg.setAttribute('preserveAspectRatio', 'none');
    const bar = (v, i) => `M${i} 1V${1 - v / top}h.85V1z`;
    path.setAttribute('d', bars.map(bar).join(''));
    svg.append(path); tip.append(svg);
  }
  const box = tip.getBoundingClientRect();
  const x = event.clientX + 16, y = event.clientY + 14;
  tip.style.left = Math.max(4, Math.min(x, innerWidth - box.width - 8)) + 'px';
  tip.style.top = Math.min(y, innerHeight - box.height - 8) + 'px';
  tip.style.visibility = 'visible';
};
const hide = () => { tip.style.visibility = 'hidden'; };
const hidden = new Set();
const cursors = [...document.querySelectorAll('.chart .cur')];
const point = x => { for (const c of cursors) {
  if (x !== null) { c.setAttribute('x1', x); c.setAttribute('x2', x); }
  c.style.visibility = x === null ? '' : 'visible';
} };
for (const svg of document.querySelectorAll('.chart')) {
  const d = JSON.parse(svg.dataset.plot);
  svg.addEventListener('pointermove', event => {
    const matrix = svg.getScreenCTM().inverse();
    const px = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix).x;
    const at = d.x0 + (px - d.left) / d.width * (d.x1 - d.x0), lines = [];
    let near = null;
    const off = p => Math.abs(p[0] - at);
    for (const s of d.series) if (!hidden.has(s.key)) for (const p of s.points)
      if (p[1] !== null && (near === null || off(p) < Math.abs(near - at))) near = p[0];
    if (near === null) return hide();
    for (const s of d.series) {
      if (hidden.has(s.key) || !s.points.length) continue;
      const p = s.points.reduce((a, b) => off(b) < off(a) ? b : a);
      if (p[1] !== null) lines.push(s.name + '  ' + +p[1].toPrecision(4) + d.unit);
    }
    // All charts have one axis, so the cursor stands in each of them.
    point(d.left + (near - d.x0) / (d.x1 - d.x0) * d.width);
    show(event, d.xlabel + ' ' + +near.toPrecision(5) + '\\n' + lines.join('\\n'));
  });
  svg.addEventListener('pointerleave', () => { hide(); point(null); });
}
for (const button of document.querySelectorAll('.legend button'))
  button.addEventListener('click', () => {
    const key = button.dataset.key, on = hidden.delete(key);
    if (!on) hidden.add(key);
    for (const b of document.querySelectorAll('.legend button'))
      if (b.dataset.key === key) b.setAttribute('aria-pressed', on);
    for (const line of document.querySelectorAll('.s'))
      if (line.dataset.key === key) line.style.display = on ? '' : 'none';
  });
for (const map of document.querySelectorAll('.map')) {
  const d = JSON.parse(map.dataset.map);
  map.addEventListener('pointermove', event => {
    const box = map.getBoundingClientRect(), n = d.times.length;
    const fx = (event.clientX - box.left) / box.width;
    const fy = 1 - (event.clientY - box.top) / box.height;
    const row = d.shares[Math.max(0, Math.min(n - 1, Math.floor(fx * n)))];
    const t = d.times[d.shares.indexOf(row)], bins = row.length;
    const bin = Math.max(0, Math.min(bins - 1, Math.floor(fy * bins)));
    const edge = i => (d.low + (d.high - d.low) * i / bins).toFixed(2);
    show(event, d.xlabel + ' ' + t + '\\nweight ' + edge(bin) + ' to ' + edge(bin + 1)
      + '\\n' + (row[bin] / 100).toFixed(2) + ' % of the weights', row);
  });
  map.addEventListener('pointerleave', hide);
}
document.documentElement.dataset.ready = '1';
"""
