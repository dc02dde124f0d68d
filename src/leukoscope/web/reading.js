// For Evidence and API: leads to a part of the page, copies an example, opens Gradio's own view of the API.
element.addEventListener('click', (event) => {
  const {to} = event.target.closest('[data-to]')?.dataset ?? {}
  if (to) {
    const part = document.getElementById(to)
    if (part.matches('details')) part.open = true
    part.scrollIntoView()
    part.focus({preventScroll: true})
  }
  const copy = event.target.closest('[data-copy-code]')
  if (copy) {
    navigator.clipboard?.writeText(copy.parentElement.querySelector('pre').textContent).then(() => {
      copy.textContent = 'Copied'
    })
  }
  const gradios = document.querySelector('footer button.show-api')
  if (gradios && event.target.closest('[data-all-parameters]')) {
    event.preventDefault()
    gradios.click()
  }
})
for (const place of element.querySelectorAll('[data-address]')) place.textContent = `${location.origin}${location.pathname}`
// On a phone, the tables of small changes and of a card's "How good it is" are closed until they are touched.
const FOLDED = ['#lk-small-changes', '#card .md > div > div:first-child > details']
const evidence = element.closest('#evidence-page')
if (evidence) {
  new MutationObserver(() => {
    for (const table of evidence.querySelectorAll(FOLDED.map((part) => `${part}:not([data-lk-come])`).join())) {
      table.dataset.lkCome = ''
      if (innerWidth <= 720) table.open = false
    }
  }).observe(evidence, {childList: true, subtree: true})
}
