"""How the demo looks: one theme and one style sheet for every tab, made of system fonts and colours on the page itself.

Nothing here is fetched from the internet. Two tones carry all meaning (the violet of a Giemsa stain for what the model
predicts, amber for a warning), each dark enough on light and light enough on dark to be read at any size (WCAG AA).
"""

from __future__ import annotations

import gradio as gr

SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
SYSTEM_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

CSS = """
/* The page keeps its width while it loads: what stands in it must not move. */
.gradio-container { width: 100% !important; max-width: 100vw !important; margin: 0 !important;
  overflow: clip !important; }
/* Set here, not below: Gradio scopes what stands in a media query to inside this element. */
.gradio-container .main.app { width: 100%; max-width: none; margin: 0;
  padding: 0.75rem max(clamp(0.75rem, 3vw, 2rem), calc(50% - 508px)) !important; }
/* What follows the tabs stays below the first screen while a result is awaited. */
.gradio-container:not(:has(#cell-summary):has(#upload)) :is(.tabs, #about, .wrap) { visibility: hidden; }
/* What was there is dimmed from the click on, until the next result is there. */
[data-lk-busy] :is(#cell-result, #field, #batch-gallery) { opacity: 0.3; pointer-events: none; }
#offline { display: none; } [data-lk-offline] #offline { display: block; }
[data-lk-offline] #cell-result { display: none !important; }
/* Nothing is seen in one language and then replaced by the other. */
.gradio-container:lang(de):not(:has([data-lang="de"])) .main { visibility: hidden; animation: lk-seen 0s 4s forwards; }
@keyframes lk-seen { to { visibility: visible; } }
.tabitem { min-height: 100vh; } #cell-summary { min-height: 9rem; }
.gradio-container .main .wrap > .column { gap: 0.5rem; } #upload .wrap { font-size: 1rem; }
.gradio-container .html-container { padding: 0; }
.gradio-container .html-container a { padding: 0; color: var(--lk-accent); }
/* Wide tables scroll within themselves; they never widen the page. */
.gradio-container :is(.main, .wrap, .contain, .column, .tabitem, .html-container) { min-width: 0; max-width: 100%; }
:root, .dark { --lk-accent: #6b3fa0; --lk-track: #e7e4ee; --lk-line: #d3d0db; --lk-quiet: #55515f;
  --lk-warn-ink: #5c3d00; --lk-warn-fill: #fff4d6; --lk-warn-line: #d9a520; }
.dark { --lk-accent: #b794e6; --lk-track: #37333f; --lk-line: #4a4553; --lk-quiet: #b9b4c4;
  --color-accent: #b794e6; --lk-warn-ink: #ffe2a0; --lk-warn-fill: #3a2f14; --lk-warn-line: #8a6a1c; }
/* Gradio draws the empty part of a slider nearly white on dark, too. */
.dark input[type="range"] { --neutral-200: var(--lk-track); }
.lk-head { display: flex; align-items: baseline; gap: 0 1rem; }
.lk-head h1 { font-size: 1.4rem; font-weight: 650; margin: 0; letter-spacing: -0.01em; color: var(--lk-accent); }
.lk-head p { flex: 1; margin: 0; color: var(--lk-quiet); }
.lk-notice { border: 1px solid var(--lk-warn-line); background: var(--lk-warn-fill); color: var(--lk-warn-ink);
  border-radius: 6px; padding: 0.2rem 0.75rem; font-weight: 600; font-size: 0.92rem; }
* + .lk-notice { margin-top: 0.75rem; }
#notice { position: sticky; top: 0; z-index: 20; overflow: visible; }
@media print {
  #notice { position: static; }
  /* The result alone, on one page. */
  .tabitem { min-height: 0; }
  #cell-given, #cell-controls, #visit, .lk-tools, .tab-wrapper, #about, footer {
    display: none !important; }
  .lk-stage { max-width: 9cm !important; }
}
:is(#examples, #smear-examples, #real-cells) .grid-wrap { min-height: 0; max-height: none; overflow: visible; }
#examples .thumbnail-lg { aspect-ratio: 1.4; height: auto; }
:is(#examples, #real-cells) .grid-container { grid-template: none / repeat(3, minmax(0, 1fr)) !important;
  height: auto; gap: 0.4rem; grid-auto-rows: auto; }
#header { align-items: center; flex-wrap: nowrap; } #head { flex: 1; } #model { flex: 0 0 25rem !important; }
#cell-buttons { flex-wrap: nowrap; gap: 0.4rem; } #cell-buttons > * { min-width: 0 !important; }
#samples { gap: 0.4rem; flex-wrap: nowrap; } #samples button { white-space: nowrap; padding: 0.2rem 0.3rem; }
/* In a narrow column the words of an upload take two lines instead of being cut. */
#upload :is(.prompt, .prompt *) { white-space: normal !important; }
.gradio-container .tab-container button { padding: 0 0.6rem; }
#model input { text-overflow: ellipsis; padding-right: 1.6rem; }
#smear-examples .grid-container { grid-template: none / repeat(4, minmax(0, 1fr)) !important; height: auto; }
:is(#cell-summary, #field-summary, #batch-summary) { scroll-margin-top: 5rem; }
:is(#examples, #smear-examples, #real-cells) .caption-label { font-size: 0.72rem; max-width: 100%; left: 0;
  right: auto; border-radius: 0; }
.lk-note { color: var(--lk-quiet); font-size: 0.9rem; }
.lk-short { display: inline-block; font-size: 1.1rem; font-weight: 650; margin: 0 0 0.6rem; padding: 0.2rem 0.9rem;
  border-radius: 1rem; line-height: 1.35; color: #fff; background: #6b3fa0; }
.lk-short.none { color: var(--lk-warn-ink); background: var(--lk-warn-fill); border: 1px solid var(--lk-warn-line); }
.lk-headline { line-height: 1.35; font-weight: 600; margin: 0 0 0.25rem; }
.lk-because { margin: 0 0 0.75rem; color: var(--lk-quiet); }
.lk-bars { list-style: none; margin: 0.3rem 0 0.6rem !important; padding: 0 !important; display: flex;
  flex-wrap: wrap; gap: 0 1.2rem; justify-content: space-between; }
.lk-bars li { margin: 0; color: var(--lk-quiet); } .lk-bars b { color: var(--body-text-color); }
.lk-bars data { font-variant-numeric: tabular-nums; font-weight: 600; white-space: nowrap;
  color: var(--body-text-color); }
.lk-track { display: flex; height: 0.8rem; border-radius: 4px; background: var(--lk-track); overflow: hidden;
  margin-top: 0.5rem; }
.lk-track i { height: 100%; background: var(--lk-track); border-left: 1px solid var(--body-background-fill); }
.lk-track i:first-child { background: var(--lk-accent); }
.lk-foreign { list-style: none; margin: 0.4rem 0 !important; padding: 0 !important; font-size: 0.9rem; }
.lk-foreign li { display: grid; grid-template-columns: 8rem 1fr 10rem; gap: 0.6rem; align-items: center; margin: 0; }
.lk-range { position: relative; height: 0.5rem; border-radius: 3px;
  background: linear-gradient(90deg, var(--lk-accent) 25%, var(--lk-track) 25%); }
.lk-range i { position: absolute; top: -0.25rem; height: 1rem; width: 3px; background: var(--lk-warn-line);
  margin-left: -1px; }
.lk-view { margin: 0; background: var(--body-background-fill); }
.lk-stage { position: relative; overflow: hidden; border-radius: 6px; border: 1px solid var(--lk-line);
  user-select: none; }
.lk-stage :is(div, img) { position: absolute; inset: 0; width: 100%; height: 100%; max-width: none; }
.lk-stage div { clip-path: inset(0 0 0 var(--at, 50%)); }
.lk-stage img { transform: translate(var(--x, 0), var(--y, 0)) scale(var(--zoom, 1)); }
.lk-stage::after { content: ""; position: absolute; inset: 0 auto 0 var(--at, 50%); width: 3px; margin-left: -1px;
  background: #fff; cursor: ew-resize; }
.lk-stage.alone::after { display: none; } .lk-stage { cursor: crosshair; }
.lk-stage:focus-visible { outline: 3px solid var(--lk-accent); outline-offset: 2px; }
.lk-tools { display: flex; align-items: center; gap: 0.4rem; margin-top: 0.3rem; font-size: 0.82rem; }
.lk-tools input { flex: 1; min-width: 4rem; accent-color: var(--lk-accent); }
.lk-view figcaption { font-size: 0.88rem; color: var(--lk-quiet); }
.gradio-container .lk-forms { grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
.lk-sort select { border: 1px solid var(--lk-line); border-radius: 4px; background: var(--body-background-fill);
  color: var(--body-text-color); padding: 0.1rem 1.6rem 0.1rem 0.4rem; }
#visit .lk-cells { grid-template-columns: repeat(auto-fill, minmax(4.5rem, 1fr)); }
.lk-scale { display: flex; flex-wrap: wrap; align-items: center; gap: 0 0.4rem; font-size: 0.82rem; margin: 0; }
.lk-scale span { display: flex; align-items: center; gap: 0.4rem; flex: 1; min-width: 6rem; }
.lk-scale i { flex: 1; min-width: 2rem; max-width: 7rem; height: 0.5rem; border-radius: 2px;
  background: linear-gradient(90deg, #7e1e6c, #bf3951, #ee6c22, #fbb71c, #fcfea4); }
.lk-chip { font-weight: 600; white-space: nowrap; padding: 0 0.5em; border-radius: 1em;
  border: 1px solid var(--lk-line); }
.lk-explanation p { margin: 0 0 0.6rem; }
.lk-facts { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 0.9rem; margin: 0 0 0.75rem;
  font-size: 0.92rem; }
.lk-facts dt { color: var(--lk-quiet); }
.lk-facts dd { margin: 0; overflow-wrap: anywhere; }
.lk-message { border-left: 4px solid var(--lk-warn-line); background: var(--lk-warn-fill); color: var(--lk-warn-ink);
  padding: 0.7rem 0.9rem; border-radius: 4px; overflow-wrap: anywhere; }
.lk-message strong { display: block; margin-bottom: 0.15rem; }
.lk-explanation .lk-message { margin-bottom: 0.75rem; }
.lk-empty { border: 1px dashed var(--lk-line); border-radius: 6px; padding: 2.2rem 1rem; text-align: center;
  color: var(--lk-quiet); }
.lk-field { position: relative; margin: 0.5rem 0; }
.lk-field img { width: 100%; height: auto; display: block; border-radius: 6px; }
.lk-box { position: absolute; border-width: 2px; background: transparent; padding: 0; border-radius: 3px; }
.lk-box span { position: absolute; left: -2px; bottom: 100%; font-size: 0.75rem; line-height: 1.2; padding: 0 0.2rem;
  background: #fff; color: #18181b; white-space: nowrap; border-radius: 2px; }
.lk-right span { left: auto; right: -2px; }
button.lk-box { cursor: pointer; }
button.lk-box:hover, button.lk-box:focus-visible { outline: 3px solid var(--lk-accent); outline-offset: 2px; }
.lk-counts { display: flex; flex-wrap: wrap; gap: 0.5rem 1.5rem; margin: 0.5rem 0; }
.lk-counts dt { color: var(--lk-quiet); font-size: 0.9rem; }
.lk-counts dd { margin: 0; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.lk-cells { list-style: none; margin: 0.5rem 0 !important; padding: 0 !important; display: grid; gap: 0.6rem;
  grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)); }
.lk-cells li { display: grid; gap: 0.1rem; font-size: 0.8rem; min-width: 0; margin: 0; }
.lk-cells img { width: 100%; height: auto; aspect-ratio: 1; object-fit: contain; background: #000; border-radius: 4px; }
.lk-cells li span { color: var(--lk-quiet); overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
#field-cells li span { white-space: normal; }
.lk-parcel { display: none !important; }
.lk-cells button { all: unset; cursor: pointer; display: block; }
.lk-cells button:hover, .lk-cells button:focus-visible { outline: 3px solid var(--lk-accent); outline-offset: 2px; }
.lk-subject { margin: 0.6rem 0; } .lk-subject h3 { margin: 0; font-size: 1rem; overflow-wrap: anywhere; }
.lk-subject svg { width: 100%; max-width: 60rem; height: auto; display: block; }
.lk-subject circle[data-cell] { cursor: pointer; } .lk-subject circle:hover { stroke: currentColor; stroke-width: 1.5; }
.lk-cells li.wrong img { outline: 2px solid var(--lk-warn-line); }
.lk-scroll { overflow-x: auto; margin: 0.4rem 0 1rem; }
.lk-scroll table { border: 0 !important; border-collapse: collapse; font-size: 0.9rem; min-width: 50%;
  font-variant-numeric: tabular-nums; }
.lk-scroll tr { border: 0 !important; }
.lk-scroll th, .lk-scroll td { border: 0 !important; border-bottom: 1px solid var(--lk-line) !important;
  padding: 0.3rem 0.6rem !important; text-align: left; }
.lk-scroll caption { text-align: left; padding: 0 0.6rem; }
.lk-scroll thead th { color: var(--lk-quiet); font-weight: 600; }
.lk-scroll tbody th { font-weight: 500; }
#save-report { align-self: end; }
/* Nothing but a mark to fold a line, as high as the program was before it was filled in. */
.lk-code .cm-gutters { display: none !important; }
/* Gradio's colours for code are too pale to be read on a light ground. */
.lk-code .cm-content span { color: var(--body-text-color) !important; }
.lk-figure { max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: 0.5rem; }
.dark .lk-figure { filter: invert(0.9) hue-rotate(180deg); }
.gradio-container section h3 { margin: 1.4rem 0 0.3rem; }
.gradio-container .html-container h2 { font-size: 1.1rem; margin: 0.5rem 0; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  .lk-head { flex-wrap: wrap; justify-content: space-between; } .lk-head p { order: 2; flex-basis: 100%; }
  /* The result stands right below the upload and the examples. */
  #cell-given { display: contents; }
  #cell-given > * { order: 2; }
  #cell-result { order: 1; }
  #cell-row :is(#upload, #pick-one, #examples, #smear-examples) { order: 0; }
  #cell-answer > .column { display: contents; }
  #cell-row #examples .grid-container { grid-template: none / repeat(6, minmax(0, 1fr)) !important; gap: 0.25rem; }
  #cell-row #examples .thumbnail-lg { aspect-ratio: 1; } #header { flex-wrap: wrap; gap: 0.3rem; }
  #head, #model { flex: 1 0 100% !important; } .lk-notice { font-size: 0.85rem; padding: 0.1rem 0.6rem; }
  #examples .caption-label { font-size: 0.6rem; padding: 0 0.2rem; }
  #upload { height: 5rem !important; } #upload .wrap { min-height: 3rem; } #about-model p { font-size: 0.85rem; }
  .lk-foreign li { grid-template-columns: 1fr 1fr; } .lk-foreign li span:last-child { grid-column: 1 / -1; }
}
@media (max-width: 480px) {
  .tab-container button { padding: 0 0.35rem; font-size: 0.92rem; }
  .lk-box span { font-size: 0.6rem; }
  .lk-facts { grid-template-columns: 1fr; }
  .lk-facts dd { margin-bottom: 0.3rem; }
}
"""


def build_theme() -> gr.themes.Base:
    """The theme of all tabs: violet on neutral grey, flat, in the reader's own system fonts."""
    return gr.themes.Base(
        primary_hue="violet",
        secondary_hue="violet",
        neutral_hue="zinc",
        radius_size="sm",
        font=SYSTEM_FONTS,
        font_mono=SYSTEM_MONO,
    ).set(
        body_text_color="*neutral_900",
        body_text_color_subdued="*neutral_600",
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        block_info_text_color="*neutral_700",
        block_shadow="none",
        color_accent="*primary_700",
        slider_color="*primary_700",
        slider_color_dark="*primary_300",
    )
