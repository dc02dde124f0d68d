// For the line on top: switches between cells, evidence and API, which the page's address names.
window.lkTabOf = (address) => {
  const name = new URL(address).searchParams.get('tab')
  return ['evidence', 'api'].includes(name) ? name : 'cell'
}
// The model whose card is open on Evidence; "" until one is chosen.
window.lkCardOf = (address) => {
  const isEvidence = window.lkTabOf(address) === 'evidence'
  return (isEvidence && new URL(address).searchParams.get('card')) || ''
}
window.lkTab = (name) => {
  if (document.body.dataset.lkTab && document.body.dataset.lkTab !== name) scrollTo(0, 0)
  document.body.dataset.lkTab = name
  for (const link of document.querySelectorAll('.lk-head [data-tab]')) {
    if (link.dataset.tab === name) link.setAttribute('aria-current', 'page')
    else link.removeAttribute('aria-current')
  }
  document.body.dataset.lkCard = window.lkCardOf(location)
  // Until a card is chosen, that of the model whose answer is shown.
  const card = document.body.dataset.lkCard || (new URL(location).searchParams.get('model') ?? '')
  if (name === 'evidence') trigger('select', {index: 0, value: `evidence:${card}`})
}
document.addEventListener('click', ({target}) => {
  const [, card] = target.closest('[data-act^="evidence:"]')?.dataset.act.match(/^evidence:(.*)$/) ?? []
  if (!card) return
  document.body.dataset.lkCard = card
  window.lkAddress?.()
})
document.addEventListener('click', (event) => {
  const link = event.target.closest('[data-tab]')
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return
  event.preventDefault()
  window.lkTab(link.dataset.tab)
  window.lkAddress?.()
})
// What is opened at the end of the answer or of the page is in sight.
document.addEventListener('toggle', ({target}) => {
  const text = target.lastElementChild
  // What lies over the answer is in sight.
  const isAbove = target.matches('.lk-more') && getComputedStyle(text).position === 'absolute'
  if (target.open && !isAbove && target.matches('.lk-more, .lk-another, .lk-foot details')) {
    text.scrollIntoView({block: 'nearest'})
  }
  if (target.open && target.matches('.lk-another')) target.querySelector('input').focus({preventScroll: true})
}, true)
const closeDetails = (details) => {
  details.open = false
  details.querySelector('summary').focus()
}
document.addEventListener('click', ({target}) => {
  if (target.matches('[data-close]')) closeDetails(target.closest('details'))
})
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape') return
  const opened = event.target.closest('details[open]:is(.lk-more, .lk-another)') ?? openedText()
  if (opened) closeDetails(opened)
})
// A text of the line at the end of the page lies over what is above it, until Escape or a click elsewhere.
const openedText = () => document.querySelector('.lk-foot details[open]')
document.addEventListener('click', ({target}) => {
  const text = openedText()
  if (text && !text.contains(target)) text.open = false
})
window.lkTab(window.lkTabOf(location))
// The page is hidden until then: the same words in another font are wider and would move what stands below them.
Promise.allSettled([400, 700].map((weight) => document.fonts.load(`${weight} 14px "IBM Plex Sans"`))).then(() => {
  document.body.dataset.lkFonts = 'loaded'
})
