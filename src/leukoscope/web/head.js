// For the line on top: switches between cells, evidence and the documentation of the API, which the page's address names.
window.lkTab = (name) => {
  document.body.dataset.lkTab = name
  for (const link of document.querySelectorAll('.lk-head [data-tab]')) {
    if (link.dataset.tab === name) link.setAttribute('aria-current', 'page')
    else link.removeAttribute('aria-current')
  }
  if (name === 'evidence') trigger('select', {index: 0, value: 'evidence:'})
}
document.addEventListener('click', (event) => {
  const link = event.target.closest('[data-tab]')
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return
  const opensApi = document.querySelector('footer button.show-api')
  if (link.dataset.tab === 'api' && !opensApi) return
  event.preventDefault()
  if (link.dataset.tab === 'api') {
    opensApi.click()
    return
  }
  window.lkTab(link.dataset.tab)
  window.lkAddress?.()
})
window.lkTab(new URLSearchParams(location.search).get('tab') === 'evidence' ? 'evidence' : 'cell')
