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
// On a phone, the table of small changes is closed until it is touched.
const evidence = element.closest('#evidence-page')
if (evidence) {
  new MutationObserver(() => {
    // The page says that there is no model of the name in the address: a reload would say so again, a link would pass it on.
    if (evidence.querySelector('[data-no-card]') && document.body.dataset.lkCard) {
      document.body.dataset.lkCard = ''
      window.lkAddress?.('replaceState')
    }
    for (const details of evidence.querySelectorAll('#lk-small-changes:not([data-lk-come])')) {
      details.dataset.lkCome = ''
      if (innerWidth <= 720) details.open = false
    }
  }).observe(evidence, {childList: true, subtree: true})
}
