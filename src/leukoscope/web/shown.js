// For the answer: model and example go to the page's address, which opens them again; the page keeps what it shows for
// when the server has been away, and follows the browser's Back.
window.lkAddress = () => {
  const to = new URL(location), shown = element.querySelector('[data-model]')?.dataset
  if (!shown) return
  const tab = document.querySelector('[role=tab][aria-selected=true]')?.dataset.tabId
  for (const [name, value] of Object.entries({model: shown.model, tab, example: shown.example}))
    value ? to.searchParams.set(name, value) : to.searchParams.delete(name)
  if (String(to) != String(location)) history[location.search ? 'pushState' : 'replaceState'](null, '', to)
}
watch('value', () => {
  window.lkAddress()
  const shown = ['picture', 'answer'].map((id) => document.querySelector(`#${id} .prose`)?.innerHTML ?? '')
  try { sessionStorage.lkShown = JSON.stringify(shown) } catch { delete sessionStorage.lkShown }
})
addEventListener('popstate', () => {
  const to = new URL(location).searchParams, shown = element.querySelector('[data-model]')?.dataset ?? {}
  const tab = document.querySelector(`[role=tab][data-tab-id="${to.get('tab') ?? 'cell'}"]`)
  if (tab && tab.getAttribute('aria-selected') != 'true') tab.click()
  else if (shown.example && to.get('example')) trigger('select', {index: 0, value: `example:${to.get('example')}`})
})
if (sessionStorage.lkLost && sessionStorage.lkShown) {
  const shown = JSON.parse(sessionStorage.lkShown)
  ;['picture', 'answer'].forEach((id, at) => {
    const place = document.querySelector(`#${id} .prose`)
    if (place) place.innerHTML = shown[at]
  })
}
setTimeout(() => delete sessionStorage.lkLost, 3000)
