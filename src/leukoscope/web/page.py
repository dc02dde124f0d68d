"""What the tabs share of the page: how events are registered, and the scripts that run in a visitor's browser."""

from __future__ import annotations

from typing import Any

SESSION_SECONDS = 1800
# Of every event that is no part of the public API.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
Updates = dict[Any, Any]
"""Component → its new value."""

# For the element below the upload. Dims the result as soon as something else is asked for, takes a pasted picture,
# tells that the server cannot be reached, and follows the browser's Back.
BOX = """const PICKS = '#examples button, #smear-examples button, #real-cells button, #samples button, [data-cell]'
const page = document.body.dataset, files = () => document.querySelector('#upload input[type=file]')
const dim = () => { page.lkBusy = '1' }
for (const kind of ['change', 'drop']) document.addEventListener(kind, (event) => {
  if (event.target.closest?.('#upload') && (event.dataTransfer ?? event.target).files?.length) dim()
}, true)
document.addEventListener('click', (event) => { if (event.target.closest(PICKS)) dim() }, true)
document.addEventListener('paste', (event) => {
  if (!event.clipboardData.files.length || event.target.closest('input, textarea')) return
  files().files = event.clipboardData.files
  files().dispatchEvent(new Event('change', {bubbles: true}))
})
const ask = window.fetch
window.fetch = (...request) => ask(...request).catch((error) => {
  if (error.name != 'AbortError') { delete page.lkBusy; page.lkOffline = '1' }
  throw error
})
addEventListener('popstate', () => {
  const to = new URL(location).searchParams, shown = document.querySelector('#visit [data-model]')?.dataset ?? {}
  const tab = document.querySelector(`[role=tab][data-tab-id="${to.get('tab') ?? 'cell'}"]`)
  if (to.get('model') && to.get('model') != shown.model) location.reload()
  else if (tab && tab.getAttribute('aria-selected') != 'true') tab.click()
  else document.querySelectorAll('#examples button, #smear-examples button')[to.get('example') - 1]?.click()
})"""

# The result is there.
READY = "() => { delete document.body.dataset.lkBusy; delete document.body.dataset.lkOffline }"

# Model, tab and example go to the page's address, which opens them again; Back leads to those before.
ADDRESS = """() => {
  const to = new URL(location), shown = document.querySelector('#visit [data-model]')?.dataset ?? {}
  const tab = document.querySelector('[role=tab][aria-selected=true]')?.dataset.tabId
  for (const [name, value] of Object.entries({model: shown.model, tab, example: shown.example}))
    value ? to.searchParams.set(name, value) : to.searchParams.delete(name)
  if (String(to) != String(location)) history[location.search ? 'pushState' : 'replaceState'](null, '', to)
  const other = document.getElementById('language')
  to.searchParams.set('lang', other.lang)
  other.href = to
}"""

_REVEAL = """() => {
  const shown = document.getElementById('SHOWN'), top = shown.getBoundingClientRect().top
  const hidden = document.getElementById('notice').getBoundingClientRect().bottom
  if (top < hidden || top > innerHeight * 0.7) shown.scrollIntoView({behavior: 'smooth'})
}"""


def reveal(shown: str) -> str:
    """JavaScript that scrolls to the element of this id where it is out of sight, as a result on a phone is."""
    return _REVEAL.replace("SHOWN", shown)
