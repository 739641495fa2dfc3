# frozen_string_literal: true

require 'io/wait'
require 'minitest/autorun'
require_relative 'lib/release'

# The errand portcullis-smoke-tests against a local cluster: real components, a development
# Cloud Controller, and a stand-in for the cf CLI (fixtures/cf).
class SmokeTest < Minitest::Test
  TWIN = "#{Release::FIXTURES}/cf".freeze
  DEV = "#{Release::PROGRAMS}/portcullis-dev".freeze
  # An address outside of the cells that no default group allows, and one that they allow.
  TARGET = '10.20.30.40:8443'
  PUBLIC = '1.2.3.4:80'

  def setup
    @root = Dir.mktmpdir
    @state = "#{@root}/state"
    @calls = "#{@root}/calls"
    @name = "smoke#{Process.pid}"
    output, child = IO.pipe
    @cluster = Process.spawn(DEV, 'cluster', '--name', @name, '--ports', 'auto', '--state-dir', @state, out: child, err: child)
    child.close
    wait_for_cluster(output)
  end

  def teardown
    Process.kill('TERM', @cluster)
    Process.wait(@cluster)
    FileUtils.rm_rf(@root)
  end

  def test_the_errand
    passes
    passes_with_an_existing_app
    refuses_a_target_that_is_open
    fails_with_a_wrong_password
    fails_if_no_change_arrives
  end

  private

  def passes
    output, success = errand('target' => TARGET)
    assert success, output
    steps = output.scan(/^(\w+)-security-group +(open|denied) +after +(\d+) ms$/)
    assert_equal [%w[bind open], %w[unbind denied], %w[bind open]], (steps.map { |step| step.take(2) }), output
    steps.each { |_, _, milliseconds| assert_operator milliseconds.to_i, :<, 10_000, output }
    assert_match(/^passed: /, output)
    assert_nothing_left
  end

  def passes_with_an_existing_app
    output, success = errand('target' => TARGET, 'app' => 'appB', 'org' => 'o1', 'space' => 's2')
    assert success, output
    refute_match(/create-org|push|delete-org/, File.read(@calls))
    assert_match(/^appB /, cluster('list'))
    assert_nothing_left
  end

  def refuses_a_target_that_is_open
    output, success = errand('target' => PUBLIC)
    refute success, output
    assert_match(/^FAILED: #{PUBLIC} is open before the group is bound: choose a portcullis.smoke.target/, output)
    assert_nothing_left
  end

  def fails_with_a_wrong_password
    output, success = errand('target' => TARGET, 'password' => 'wr0ng')
    refute success, output
    assert_match(/^FAILED: cf auth$/, output)
    refute_match(/wr0ng/, output)
  end

  def fails_if_no_change_arrives
    %w[syncer-1 syncer-2].each { |syncer| cluster('stop', syncer) }
    output, success = errand('target' => TARGET, 'timeout_seconds' => 4)
    refute success, output
    assert_match(/^FAILED: #{TARGET} is still denied 4 s after cf bind-security-group$/, output)
    assert_nothing_left
    %w[syncer-1 syncer-2].each { |syncer| cluster('cont', syncer) }
  end

  # Runs the rendered errand; its command lines are in @calls.
  def errand(change)
    File.write(@calls, '')
    Dir.mktmpdir do |root|
      settings = { 'api' => env('CF_API'), 'password' => 'admin', 'ca_cert' => File.read("#{@state}/certificates/ca.crt") }
      files = Release.render('portcullis-smoke-tests', 'minimal', { 'portcullis' => { 'cf_bin' => TWIN, 'smoke' => settings.merge(change) } })
      FileUtils.mkdir_p(["#{root}/bin", "#{root}/config", "#{root}/tmp"])
      files.each { |file, text| File.write("#{root}/#{file}", text.gsub('/var/vcap/jobs/portcullis-smoke-tests', root), perm: 0o755) }
      variables = ["TMPDIR=#{root}/tmp", "CF_TWIN_STATE=#{@state}", "CF_TWIN_DEV=#{DEV}", "CF_TWIN_LOG=#{@calls}"]
      result = Release.run('env', *variables, 'timeout', '90', "#{root}/bin/run")
      assert_empty Dir.children("#{root}/tmp"), 'files left behind'
      refute_match(/admin|wr0ng/, File.read(@calls), 'the account is on a command line')
      result
    end
  end

  def env(name) = File.read("#{@state}/env")[/\b#{name}=(\S+)/, 1]

  def assert_nothing_left
    refute_match(/portcullis-smoke/, cluster('list'))
    left = `bash -c '. #{@state}/env; cf_api GET "/v3/organizations?per_page=100"; cf_api GET "/v3/security_groups?per_page=100"'`
    assert_match(/"public_networks"/, left)
    refute_match(/portcullis-smoke/, left)
  end

  def cluster(*request)
    output, success = Release.run(DEV, 'cluster', *request, '--state-dir', @state)
    assert success, output
    output
  end

  # Until the cluster prints its last line, at most 60 s; then its output is dropped.
  def wait_for_cluster(output)
    lines = +''
    deadline = Process.clock_gettime(Process::CLOCK_MONOTONIC) + 60
    until lines.include?('Ctrl-C ends the cluster')
      flunk "the cluster did not start:\n#{lines}" if Process.clock_gettime(Process::CLOCK_MONOTONIC) > deadline
      lines << output.readpartial(4096) if output.wait_readable(1)
    end
    Thread.new { output.read }
  rescue EOFError
    flunk "the cluster ended:\n#{lines}"
  end
end
