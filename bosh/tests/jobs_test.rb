# frozen_string_literal: true

require_relative 'lib/release'

# Checks that hold for every job: the form of its spec, the rendered files of every
# fixture, and the failing combinations in `bad.yml`.
class JobsTest < Minitest::Test
  SPEC_KEYS = %w[name description templates packages provides consumes properties].freeze
  PROPERTY_KEYS = %w[description default example].freeze
  # Job to program, flag of the configuration file.
  PROGRAMS = {
    'locket' => ['lock-server', '-config'],
    'policy-server-asg-syncer' => ['syncer', '-config-file'],
    'policy-store' => ['policy-store', '-config-file'],
    'cell-agent' => ['cell-agent', '-config-file']
  }.freeze

  Release.job_names.each do |name|
    define_method("test_spec_of_#{name}") { check_spec(Release.job(name)) }
    define_method("test_properties_of_#{name}") { check_properties(name) }
    define_method("test_bad_properties_of_#{name}") { check_bad(name) }
    Release.fixtures(name).each do |fixture|
      define_method("test_#{name}_#{fixture}") { check_rendered(name, fixture) }
    end
  end

  private

  def check_spec(job)
    spec = job.spec
    assert_equal File.basename(job.directory), spec['name']
    assert_empty spec.keys - SPEC_KEYS, 'unknown keys of the spec'
    refute_empty spec['description'].to_s
    assert_equal Dir.children("#{job.directory}/templates").sort, spec['templates'].keys.sort
    assert_equal spec['templates'].values.uniq, spec['templates'].values, 'two templates for one file'
    assert_empty spec['packages'] - Release.package_names
    (spec['provides'] || []).each { |link| check_link(job, link, %w[name type properties]) }
    (spec['consumes'] || []).each { |link| check_link(job, link, %w[name type optional]) }
    job.declared.each { |name, definition| check_property(name, definition) }
  end

  def check_link(job, link, keys)
    assert_empty link.keys - keys, "link #{link['name']}"
    assert_kind_of String, link['name']
    assert_kind_of String, link['type']
    (link['properties'] || []).each { |name| assert_includes job.declared.keys, name }
  end

  def check_property(name, definition)
    assert_match(/\A[a-z0-9_]+(\.[a-z0-9_]+)*\z/, name)
    assert_empty definition.keys - PROPERTY_KEYS, "keys of property #{name}"
    assert_kind_of String, definition['description'], "description of property #{name}"
    assert_match(/\A[A-Z].*\.\z/m, definition['description'].strip, "description of property #{name} is a sentence")
  end

  # Every property is looked up by some template in some fixture, or given to a link.
  def check_properties(name)
    job = Release.job(name)
    Release.fixtures(name).each { |fixture| Release.render(name, fixture, job: job) }
    provided = job.spec.fetch('provides', []).flat_map { |link| link.fetch('properties', []) }
    unused = job.declared.keys.reject do |property|
      (job.lookups + provided).any? { |used| property == used || property.start_with?("#{used}.") }
    end
    assert_empty unused, 'properties that no template uses'
  end

  def check_bad(name)
    path = "#{Release::FIXTURES}/#{name}/bad.yml"
    cases = YAML.safe_load_file(path)
    refute_empty cases
    cases.each do |bad|
      error = assert_raises(RuntimeError, bad['name']) do
        Release.render(name, bad.fetch('fixture', 'minimal'), bad.fetch('properties'))
      end
      assert_equal bad.fetch('error'), error.message, bad['name']
    end
  end

  def check_rendered(name, fixture)
    files = Release.render(name, fixture)
    Dir.mktmpdir do |root|
      files.each { |file, text| write(root, name, file, text) }
      return check_disabled(root, name, files) if fixture == 'disabled'

      files.each { |file, text| check_file(root, name, file, text) }
      check_monit(root, name, files['monit'])
      check_config(root, name)
      check_context(root) if name == 'portcullisctl'
    end
  end

  # Files are blank. Scripts do nothing: the agent runs them all the same, cannot execute
  # an empty file, and reads a number from drain.
  def check_disabled(root, job, files)
    files.each do |file, text|
      next assert_empty(text.strip, file) unless file.start_with?('bin/')

      output = assert_success("#{root}/var/vcap/jobs/#{job}/#{file}")
      assert_equal file == 'bin/drain' ? "0\n" : '', output, file
    end
  end

  def write(root, job, file, text)
    path = "#{root}/var/vcap/jobs/#{job}/#{file}"
    FileUtils.mkdir_p(File.dirname(path))
    File.write(path, text, perm: file.start_with?('bin/') ? 0o755 : 0o644)
  end

  def check_file(root, job, file, text)
    path = "#{root}/var/vcap/jobs/#{job}/#{file}"
    case file
    when /\.json\z/ then JSON.parse(text)
    when /\.alerts\.yml\z/ then assert_success('promtool', 'check', 'rules', path)
    when /\.yml\z/ then assert_kind_of(Hash, YAML.safe_load(text), file)
    when %r{\Abin/}
      assert_match(/\A#!/, text, file)
      assert_success('shellcheck', '--exclude=SC1091', path)
    end
    assert_equal text.count("\n").positive? ? "\n" : '', text[-1].to_s, "#{file} ends with a newline" unless text.empty?
  end

  def check_monit(root, job, text)
    return if text.strip.empty?

    path = "#{root}/monitrc-#{job}"
    File.write(path, "set daemon 10\n#{text}", perm: 0o600)
    assert_success('monit', '-t', '-c', path)
  end

  # The configuration as the program reads it, with its paths below `root`.
  def check_config(root, job)
    program, flag = PROGRAMS[job] || return
    path = "#{root}/var/vcap/jobs/#{job}/config/#{job}.json"
    File.write(path, File.read(path).gsub('/var/vcap/', "#{root}/var/vcap/"))
    output = assert_success("#{Release::PROGRAMS}/#{program}", '--check-config', flag, path)
    refute_match(/unknown/, output)
  end

  # portcullisctl reads the context file, then fails at the socket, which does not exist.
  def check_context(root)
    path = "#{root}/var/vcap/jobs/portcullisctl/config/context.json"
    output, = Release.run("#{Release::PROGRAMS}/portcullisctl", '--context', path, '--cell-socket', "#{root}/none", 'cell')
    assert_match(/No such file|connect/, output)
    refute_match(/context file/, output)
  end

  def assert_success(*command)
    output, success = Release.run(*command)
    assert success, "#{command.join(' ')}:\n#{output}"
    output
  end
end
