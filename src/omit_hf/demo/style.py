"""How the pages look, and the script of the words: pointing at one, or reaching it with Tab, lights its cells."""

STYLE = """
.gradio-container { overflow: visible !important; }
.gradio-container .main { max-width: 1080px !important; margin: 0 auto; padding: 20px 24px !important; }
.gradio-container .html-container { padding: 0; }
.gradio-container .form { border: 0; box-shadow: none; background: none; gap: 10px; }
.gradio-container .form .block { padding: 0; border: 0; background: none; }
.toast-wrap { max-width: 100%; }
footer { display: none !important; }
#page { gap: 36px; }
#head h1 { font-size: 27px; font-weight: 650; letter-spacing: -.02em; margin: 0 0 4px; }
#head p, .note, .hint { color: var(--body-text-color-subdued); font-size: 14px; line-height: 1.5; margin: 0; }
#stage { --tallest: 62vh; }
#stage svg { display: block; width: min(100%, var(--tallest) * var(--sides)); margin: 0 auto; border-radius: 10px; }
#stage .cells rect { fill: #0b1020; fill-opacity: 0; transition: fill-opacity .15s; shape-rendering: crispEdges; }
#stage .unseen { fill: #0b1020; fill-opacity: .55; }
#stage .status { min-height: 3em; overflow-wrap: anywhere; margin: 8px 0 0; font-size: 14px; line-height: 1.5; }
.sentence { padding: 0 0 14px; margin: 0 0 14px; border-bottom: 1px solid var(--border-color-primary); }
.sentence h2 { display: flex; justify-content: space-between; gap: 16px; font-size: 14px; font-weight: 500; margin: 0;
  color: var(--body-text-color-subdued); }
.sentence output { font-variant-numeric: tabular-nums; font-weight: 600; color: var(--body-text-color); }
.words { display: flex; flex-wrap: wrap; gap: 6px; margin: 8px 0 10px; }
button.word { display: grid; grid-template-columns: minmax(0, auto) auto; column-gap: 8px; align-items: baseline;
  align-content: center; cursor: pointer; min-height: 44px; max-width: 100%; padding: 5px 10px; border-radius: 8px;
  border: 1px solid var(--border-color-primary); background: var(--background-fill-primary); text-align: left; }
button.word .name { min-width: 0; font-size: 15px; font-weight: 500; overflow-wrap: anywhere; }
button.word .share { font-size: 12px; font-weight: 400; color: var(--body-text-color-subdued); text-align: right;
  font-variant-numeric: tabular-nums; }
button.word .bar { grid-row: 2; grid-column: 1 / 3; height: 3px; margin-top: 4px; border-radius: 2px; overflow: hidden;
  background: var(--border-color-primary); }
button.word .bar i { display: block; height: 100%; background: var(--color-accent); }
button.unknown { border-style: dashed; }
.gradio-container button.where { background: none; cursor: pointer; text-decoration: underline; padding: 0;
  color: var(--color-accent); font: inherit; }
button.word.shown, button.word[aria-pressed=true] { border-color: var(--color-accent);
  background: var(--color-accent-soft); }
#results button:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 2px; }
.gradio-container .words button { margin: 0; }
.dustbins { font-size: 14px; line-height: 1.5; margin: 0; }
.error { color: #b42318; font-size: 14px; } .dark .error { color: #ff8a80; }
@media (max-width: 760px) {
  .gradio-container .main { padding: 14px 16px !important; }
  #page { flex-direction: column; flex-wrap: nowrap; gap: 14px; }
  #head h1 { font-size: 22px; }
  #stage .status { font-size: 13px; margin: 4px 0 0; }
}
"""

# Of the element that holds the buttons; the picture is in #stage.
SCRIPT = """
const VEIL = 0.75;
const stage = () => document.querySelector('#stage');
const buttons = () => [...element.querySelectorAll('button[data-shares]')];
const pinned = () => buttons().find(each => each.getAttribute('aria-pressed') === 'true');
const summary = () => element.querySelector('[data-summary]')?.dataset.summary ?? '';
function show(button) {
  buttons().forEach(each => each.classList.toggle('shown', each === button));
  const status = stage().querySelector('.status');
  if (status) status.textContent = button ? button.dataset.tells : summary();
  const shares = button ? button.dataset.shares.split(' ').map(Number) : [];
  stage().querySelectorAll('.cells rect').forEach((cell, number) => {
    const light = button ? Math.min(1, shares[number] / Number(button.dataset.highest)) : 1;
    cell.style.fillOpacity = (VEIL * (1 - light)).toFixed(3);
  });
}
const focused = () => buttons().find(each => each === document.activeElement);
const rest = () => show(focused() ?? pinned());
const of = event => event.target.closest('button[data-shares]');
element.addEventListener('mouseover', event => of(event) && show(of(event)));
element.addEventListener('mouseout', event => of(event) && rest());
element.addEventListener('focusin', event => of(event) && show(of(event)));
element.addEventListener('focusout', () => show(pinned()));
element.addEventListener('click', event => {
  const button = of(event);
  if (!button) return;
  const pin = button.getAttribute('aria-pressed') !== 'true';
  buttons().forEach(each => each.setAttribute('aria-pressed', pin && each === button));
  show(button);
});
watch('value', () => setTimeout(rest));
"""
