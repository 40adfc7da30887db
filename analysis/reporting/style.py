"""The style sheet of a page: light and dark, wide and narrow, screen and print. No font or file is fetched."""

from __future__ import annotations

CSS = """
:root{--ink:#1b1f23;--soft:#57606a;--line:#d0d7de;--page:#ffffff;--panel:#f6f8fa;--accent:#0b5cad;--good:#e8f3ec}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e6e8ea;--soft:#a2abb4;--line:#363d44;--page:#14171a;
--panel:#1d2227;--accent:#7db7f2;--good:#1c2b22;color-scheme:dark}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans","DejaVu Sans",sans-serif}
main{max-width:66rem;margin:0 auto;padding:1.5rem 1.25rem 4rem}
h1{font-size:1.75rem;line-height:1.2;margin:.2rem 0 .6rem}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem;padding-top:.4rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .3rem}
p,ul{max-width:46rem}
.meta,.note,figcaption{color:var(--soft);font-size:.88rem}
.answer{background:var(--good);border-left:4px solid var(--accent);padding:.9rem 1.1rem;border-radius:0 6px 6px 0;
max-width:none}
.answer p{margin:.35rem 0;max-width:none}
.answer p:first-child{font-size:1.12rem}
nav{display:flex;flex-wrap:wrap;gap:.15rem .9rem;margin:.8rem 0 1.2rem;font-size:.9rem}
a{color:var(--accent)}
figure{margin:1rem 0}
figure svg{display:block;width:100%;height:auto;fill:var(--ink)}
figure svg text{font-family:"DejaVu Sans",Verdana,sans-serif !important}
p.file{margin:.1rem 0 .8rem;font-size:.85rem;color:var(--soft)}
.narrow{display:none}
.scroll{overflow-x:auto;margin:.7rem 0;-webkit-overflow-scrolling:touch;
background:linear-gradient(to right,var(--page) 50%,transparent) 0 0/2rem 100% no-repeat local,
linear-gradient(to left,var(--page) 50%,transparent) 100% 0/2rem 100% no-repeat local,
linear-gradient(to right,var(--line),transparent) 0 0/.8rem 100% no-repeat scroll,
linear-gradient(to left,var(--line),transparent) 100% 0/.8rem 100% no-repeat scroll}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums;min-width:100%}
th,td{text-align:left;padding:.32rem .8rem .32rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;color:var(--soft);white-space:nowrap}
td{min-width:5.5rem}
td:first-child:not(.n){min-width:5rem}
td.l{min-width:9rem}
td.n,th.n{text-align:right;white-space:nowrap;min-width:0}
td.n:first-child{text-align:left}th.n:first-child{text-align:left}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.84rem}
pre{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:.55rem .75rem;overflow-x:auto;
margin:.35rem 0}
details{margin:.35rem 0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem .9rem;font-size:.86rem;margin:.5rem 0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--soft);font-size:.88rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.7rem;margin:.9rem 0}
.facts div{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:.55rem .8rem}
.facts b{display:block;font-size:1.2rem;font-weight:600}
.facts span{color:var(--soft);font-size:.82rem}
@media (max-width:640px){main{padding:1rem .9rem 3rem}h1{font-size:1.4rem}.wide{display:none}.narrow{display:block}
.answer{padding:.7rem .8rem}}
@media print{details::details-content{content-visibility:visible;height:auto}
main{max-width:none;padding:0}nav{display:none}.wide{display:block}.narrow{display:none}
figure,tr,.answer,.facts div{break-inside:avoid}h2,h3{break-after:avoid}pre{white-space:pre-wrap;word-break:break-all}
.scroll{overflow:visible}body{font-size:11pt}a{color:inherit;text-decoration:none}}
"""
